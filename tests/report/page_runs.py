"""The commands whose pages are tested."""

SHORT = "--limit 6"
TWO = "--method gradient --method lrp.epsilon_plus"
COMMANDS = {
    "explain": f"explain {SHORT}",
    "compare": f"compare {SHORT} {TWO}",
    "evaluate": f"evaluate {SHORT} {TWO} --layers 2 --steps 3",
    "prune": "prune --keep 0.5 --steps 3 --references 3 --photographs 4 --criterion weight",
    "criteria": "compare-criteria --criterion weight --criterion random --seeds 2 --references 2 "
    "--steps 3",
    "car": "car --per-class 4",
    "greedy": "car --per-class 4 --greedy 2",
    "filters": "filters --limit 12 --steps 2 --patches 3",
}
PAGES = (*COMMANDS, "audit", "watch")

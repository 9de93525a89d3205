"""What makes up for the units that are gone: closed forms without training, and fine-tuning."""

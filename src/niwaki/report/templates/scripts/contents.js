// The table of contents is folded where it would fill the first screen.
if (matchMedia("(max-width: 1079px)").matches) document.querySelector(".toc details").open = false;

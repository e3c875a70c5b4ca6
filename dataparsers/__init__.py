"""nerfstudio data parsers; nerfstudio loads them in the middle of its own imports, so they import little."""

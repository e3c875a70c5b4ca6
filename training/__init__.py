"""How the weights that ship were made: recipes as commands, outside the installed package."""

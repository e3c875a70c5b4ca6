"""The model as nerfstudio trains, shows and stores it."""

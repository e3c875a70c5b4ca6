"""The 3D cache: pixels with depth, seen from other cameras."""

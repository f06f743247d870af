"""The machine under a run: resources, OpenGL devices, paths, private folders and threads."""

"""URL-SOM: a network whose output layer is a map (Kermiche, 2021)."""

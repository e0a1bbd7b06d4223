"""URL-SOM: a network whose output layer is a map."""

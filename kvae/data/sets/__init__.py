"""The functions of the built-in data sets, registered in `kvae.data.DATASETS`."""

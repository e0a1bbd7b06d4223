"""The data sets, one module each; `kvae.data.DATASETS` names them."""

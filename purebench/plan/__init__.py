"""What is to be run, before anything runs: `grid` turns a request or a preset into an ordered list of validated cells;
`layouts`, `scaled`, `places` and `sheet` do so for a paper's table, and `figures` says how one is drawn; `resolved` knows a dataset,
classifier or score model before it is loaded, and `given` the images that a user brings; `catalogue` explains what there is. It may import
`errors`, `spec`, `registry`, `records`, `assets`, `datasets`, `embedded` and, of `engine`, the torch-free part. Begin reading at
`grid.build`."""

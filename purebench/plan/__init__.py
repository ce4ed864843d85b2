"""What is to be run, before anything runs: `grid` turns a request or a preset into an ordered list of validated cells;
`layouts`, `scaled`, `places` and `sheet` do so for a paper's table, and `figures` says how one is drawn; `resolved` knows a dataset,
classifier or score model before it is loaded, `prepared` how images are scaled and cut, `given` the images that a user brings, and
`hashed` what of a user's own code makes another cell; `limits` what an attack cannot do; `catalogue` explains what there is. It may
import `errors`, `spec`, `foreign`, `registry`, `records`, `assets`, `datasets`, `embedded`, `scores`, of `classifiers` the torch-free
`normalisation` and, of `engine`, what plans: its torch-free part, and `held`. Begin reading at `grid.build`."""

"""Score models: one protocol with two views, and an adapter per checkpoint family. It may import `embedded`, `assets`,
`engine` and `errors`. Begin reading at `views`."""

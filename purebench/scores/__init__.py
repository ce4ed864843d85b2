"""Score models: one protocol with two views, and an adapter per checkpoint family. It may import `embedded`, `assets`
and the engine. Begin reading at `views`."""

"""The only package that imports Ray: `bulk` (Ray Data), `training` (Ray Train), `cluster`."""

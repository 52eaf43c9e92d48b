"""The background process that computes, and the client that talks to it. Neither imports torch, but for `server`."""

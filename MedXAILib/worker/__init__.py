"""The background process that computes, and the client that talks to it. Only `server` uses the engine.

In a script::

    with LocalClient() as client:
        job = client.run(RunRequest("dream", "models/liver", [volume], {"steps": 50}), print)
        client.wait(job)

In a panel the same with `QtClient`, without ``wait``: the events come by Qt's signals. What leaves the worker is described in
`protocol`, what a panel gets of it in `jobs`.
"""

"""Parts of a suite, for runs that are trained apart."""

FAST = {"max_steps": 4, "learning_rate": 3e-2, "use_cpu": True}


def part(suite, *tasks, **fields):
    """Return a suite's plain data with some of its tasks."""
    return {**suite, "tasks": {name: suite["tasks"][name] for name in tasks}, **fields}

"""The methods. Each is a generator of steps that ends with an explanation; the registry names them without importing torch."""

from importlib import import_module


class _Registry(dict):
    """Method name -> function, imported when asked for."""

    def __missing__(self, name):
        from ..errors import MedXAIError, nearest

        if name not in _WHERE:
            raise MedXAIError(f"There is no method '{name}'{nearest(name, _WHERE)}.")
        self[name] = getattr(import_module(f".{_WHERE[name]}", __name__), name)
        return self[name]


_WHERE = {name: name for name in ("dream", "ability", "backproject", "counterfactual", "cycle")}
REGISTRY = _Registry()


def explain(method: str, model, volumes, settings, segments=()):
    """The steps of a method by name, with the segments it was given.

    Landmarks for ``backproject``; for ``counterfactual`` each says in its attribute ``role`` whether it is the organ, the annotation (also without a role)
    or the start; one at most for the others (for ``cycle`` the lesion).
    """
    if method == "backproject":
        return REGISTRY[method](model, volumes, settings, tuple(segments))
    if method == "counterfactual":
        roles = {}
        for one in segments:
            role = one.attributes.get("role", "annotation")
            if role in roles or role not in ("organ", "annotation", "start"):
                from ..errors import MedXAIError

                told = f"is one {role} too many" if role in roles else f"has the role '{role}'"
                raise MedXAIError(f"counterfactual takes one organ, one annotation and one start; '{one.name}' {told}.")
            roles[role] = one
        return REGISTRY[method](model, volumes, settings, **roles)
    if len(segments) > 1:
        from ..errors import MedXAIError

        names = ", ".join(f"'{one.name}'" for one in segments[:8])
        raise MedXAIError(f"{method} takes one segment, and {len(segments)} came ({names}); choose one.")
    return REGISTRY[method](model, volumes, settings, *segments)

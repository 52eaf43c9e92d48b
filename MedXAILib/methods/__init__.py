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


_WHERE = {"dream": "dream", "ability": "ability"}
REGISTRY = _Registry()

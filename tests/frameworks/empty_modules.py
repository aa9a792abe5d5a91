"""Modules with anything in them, for the imports of one framework alone."""

import importlib.abc
import importlib.machinery
import sys
import types
from unittest.mock import MagicMock


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `names`, and what is in them, where a file of `framework` imports them."""

    def __init__(self, framework, names):
        self.framework, self.names = framework, names

    def find_spec(self, fullname, path, target=None):
        if fullname not in self.names and fullname.partition(".")[0] not in self.names:
            return None
        frame = sys._getframe(1)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None or self.framework not in frame.f_code.co_filename:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: MagicMock()
        module.__path__ = []
        module.__version__ = "2.9.0"
        return module

    def exec_module(self, module):
        pass

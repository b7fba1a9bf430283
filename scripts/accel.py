"""Entry point that the webui executes at every (re)load of its UI."""

from lib_accel.extension import AccelScript, register

__all__ = ["AccelScript"]

register()

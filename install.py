"""Run by the webui before it starts. There is nothing to install: everything needed comes with the webui."""

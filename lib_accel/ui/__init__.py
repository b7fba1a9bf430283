"""What the user sees in the webui: settings, the accordion, and the tab with its page."""

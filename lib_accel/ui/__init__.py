"""What the user sees in the webui: settings and the accordion, both made from Options and the report."""

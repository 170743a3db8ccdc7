"""Images: where they come from (`datasets`), how they wait in memory (`resident`), how they are varied (`augment`)."""

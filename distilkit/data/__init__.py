"""Images: where they come from (`datasets`), how they wait in memory (`resident`)
or in their files (`pictures`, `streaming`), how they are varied (`augment`)."""

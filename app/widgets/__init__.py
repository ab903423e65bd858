"""The parts of the page that Gradio does not have: a static template, JavaScript and CSS, one folder each."""

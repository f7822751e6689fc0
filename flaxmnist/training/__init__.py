"""An experiment: built, resumed, trained, summarized."""

"""What each family of Hugging Face models says of its shape in `config.json`.

One module per kind of family; `profiler.huggingface` looks a `model_type` up and reads the file.
Names and defaults of keys are those of the configuration classes of the `transformers` library, or
of the model's own code where it has no class there (grok-1, internlm).
"""

"""A stand-in for the release's script: see tests/standin/site/tensorrt_llm/convert_script.py."""

from tensorrt_llm.convert_script import main

if __name__ == "__main__":
    main()

"""The directive `odvae-help COMMAND`, which shows what `odvae COMMAND --help` prints."""

import importlib
import os
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive

from odvae_jax.cli.parsing import Parser

COLUMNS = "90"


class Help(Directive):
    """Shows the help of a subcommand. Its argument is the subcommand, such as "data pack"."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        command = self.arguments[0]
        module = importlib.import_module(f"odvae_jax.cli.{command.replace(' ', '_')}")
        parser = Parser(f"odvae {command}", module.__doc__, module.EXAMPLE)
        module.add_arguments(parser)
        self.state.document.settings.record_dependencies.add(module.__file__)
        with mock.patch.dict(os.environ, COLUMNS=COLUMNS):  # the width that argparse fills
            text = parser.format_help()
        return [nodes.literal_block(text, text, language="text")]


def setup(app):
    app.add_directive("odvae-help", Help)
    return {"parallel_read_safe": True}

"""The command line: which commands there are, and what becomes of errors.

Commands are imported when they are called, so that `./convoy --help` does not wait for torch, Ray and Prefect.
Exit codes: 0 done; 1 the run failed; 2 what was given is wrong; 130 Ctrl-C; 143 told to stop (SIGTERM).
"""

import inspect
import re
import signal
import sys
import traceback
from types import FrameType

from cyclopts import App, CycloptsError

from pipelines.adoption import adopt, server_away
from pipelines.fulldisk import full_disk, of_database
from pipelines.homefolder import unwritable_home
from pipelines.reporting import shown

STOPPED = 128  # the shell's convention: plus the signal's number
HELP = """From a folder of images to a registered, honestly tested vision model.

First steps:

  ./convoy demo                                     try it on handwritten digits
  ./convoy data add photos/ --name products         bring your own, a folder a class
  ./convoy train classification --dataset products  train, test, register
  ./convoy predict models:/classifier-products@champion new/*.jpg

Every command explains itself: ./convoy train --help. Errors are one line; --debug shows where they came from.
Reports take --json."""

app = App(
    name="convoy",
    help=HELP,
    version_flags=[],
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
# By name, in the order of --help: where it is, and what it does.
COMMANDS = {
    "data": ("commands_data:app", "Ingest, list, show and check datasets."),
    "align": ("commands_align:align", "Find the face of each picture of a folder, and write it aligned."),
    "train": ("commands_train:train", "Train a model on a dataset, test it, and register it."),
    "ensemble": ("commands_ensemble:ensemble", "Train several models in parallel, and register them as one."),
    "retrain": (
        "commands_retrain:retrain",
        "Train again on new data, and promote the model if the gate finds it better.",
    ),
    "search": ("commands_search:search", "Search better parameters by many trials, and train the best."),
    "learning-curve": (
        "commands_curve:learning_curve",
        "Compare the modes of transfer learning on few and on many pictures.",
    ),
    "evaluate": ("commands_models:evaluate", "Test a model, or several together, on a dataset."),
    "compare": ("commands_compare:compare", "Compare tested runs: mean and sd over seeds, and differences."),
    "predict": ("commands_predict:predict", "Classify images, or find objects in them."),
    "serve": ("commands_serve:serve", "Answer predictions over HTTP, and follow the model's alias."),
    "drift": ("commands_drift:drift", "Tell whether what a model is asked about has drifted."),
    "detect-windows": (
        "commands_windows:detect_windows",
        "Find what a classifier knows in a picture, by sliding windows.",
    ),
    "mine": ("commands_mine:mine", "Add a classifier's false alarms in photographs to its dataset, and train again."),
    "faces": ("commands_faces:app", "Enrol people by pictures of their faces, verify and recognise them."),
    "explain": (
        "commands_explain:app",
        "Show where a model comes from; what its units see, and where it finds what it predicts.",
    ),
    "liveness": ("commands_liveness:app", "Tell real faces from presentation attacks: simulated sets, APCER, BPCER."),
    "stylize": ("commands_stylize:stylize", "Render a picture in the style of others."),
    "models": ("commands_models:app", "List and show registered models."),
    "promote": ("commands_aliases:promote", "Make a version the champion."),
    "rollback": ("commands_aliases:rollback", "Make the version before the champion again."),
    "history": ("commands_aliases:history", "List the moves of a model's aliases: what, when, who, why."),
    "reproduce": (
        "commands_lineage:reproduce",
        "Train a model again by its own commit, data and parameters, and compare.",
    ),
    "parameters": ("commands_train:parameters", "Explain the parameters of a recipe, for train --set."),
    "doctor": ("doctor:doctor", "Check that this machine can run everything."),
    "maintain": ("commands_maintain:maintain", "Free what nothing needs any more: old checkpoints, cache, leftovers."),
    "demo": ("demo:demo", "Train and register two classifiers of handwritten digits, and a detector."),
    "edges": ("commands_edges:edges", "Write the edge maps of a picture, by Sobel's filters and others."),
    "export": (
        "commands_export:export",
        "Write a classifier of pictures, signals or volumes as one ONNX or torch.export file.",
    ),
    "up": ("commands_platform:up", "Start Prefect, MLflow and Ray as servers, with a worker and all deployments."),
    "down": ("commands_platform:down", "Stop what up started; flow runs leave a checkpoint."),
    "status": ("commands_platform:status", "Show which servers run, since when, and what is in the queue."),
}  # fmt: skip
for _place, (_name, (_where, _help)) in enumerate(COMMANDS.items()):
    app.command(f"pipelines.{_where}", name=_name, help=_help, sort_key=_place)

PLATFORM = {"up", "down", "status"}  # they know the platform by themselves, and mend it

# What a person gave, or can mend: the exit code is 2.
GIVEN = (
    ValueError,
    FloatingPointError,
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


class Stopped(BaseException):
    """The process was told to stop by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def raise_stopped(number: int, _frame: FrameType | None) -> None:
    """A signal handler that unwinds, so that everything that was started is stopped."""
    raise Stopped(number)


def explain_in_full(name: str) -> None:
    """Let `./convoy NAME --help` show all of the command's docstring; the list of commands has a line of each.

    Its lines are filled anew, as Markdown: a console is narrower than the code.
    """
    command = app[name]
    command.help_format = "markdown"
    if command.default_command is not None:
        told = (inspect.getdoc(command.default_command) or "").partition("\n\nParameters\n")[0]
        command.help = told.replace("\nExample: ", "\n\nExample: ")


def name_what_may_be_left_out(arguments: list[str]) -> None:
    """Let the usage of the command that is asked about name the words that may be left out: Cyclopts calls all ARGS."""
    from cyclopts.help import format_usage  # only for --help

    command, chain = app, list[str]()
    for word in arguments:
        if word.startswith("-") or word not in command:
            break
        command = command[word]
        chain.append(word)
    if command.default_command is None or not chain:
        return
    named = []
    for parameter in inspect.signature(command.default_command).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            named.append(f"[{parameter.name.upper()}...]")
        elif parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
            named.append(f"[{parameter.name.upper()}]")
    usage = str(format_usage(app, chain)).rstrip()
    command.usage = re.sub(r"\[ARGS(\.\.\.)?\]$", " ".join(named), usage)


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    debug = "--debug" in arguments
    if arguments and arguments[0] in app and not arguments[0].startswith("-"):
        explain_in_full(arguments[0])
    if {*app.help_flags} & {*arguments}:
        name_what_may_be_left_out(arguments)
    signal.signal(signal.SIGTERM, raise_stopped)
    try:
        if not {*arguments[:1]} & PLATFORM:
            adopt()
        code = app([text for text in arguments if text != "--debug"], exit_on_error=False, print_error=False)
    except (KeyboardInterrupt, Stopped) as error:
        number = error.number if isinstance(error, Stopped) else signal.SIGINT
        return complain("stopped", STOPPED + number, debug)
    except CycloptsError as error:
        return complain(usage_fault(error), 2, debug)
    except GIVEN as error:
        told = of_database(error) and full_disk(error)  # which cannot open its files then
        fault = given_fault(error)
        if told:
            return complain(f"{told} [{fault}]", 1, debug)
        home_fault = unwritable_home(error)
        return complain(f"{home_fault} [{fault}]" if home_fault else fault, 2, debug)
    except ConnectionError as error:  # the world's fault: where it was raised says nothing more
        return complain(first_line(error), 1, debug)
    except Exception as error:
        told = full_disk(error) or unwritable_home(error) or server_away()
        shown = f"{first_line(error)} (--debug shows where)"
        return complain(f"{told} [{shown}]" if told else shown, 1, debug)
    return code if isinstance(code, int) else 0


def complain(message: str, code: int, debug: bool) -> int:
    """Say what went wrong on stderr, and return the exit code."""
    if debug:
        sys.stderr.write(shown(traceback.format_exc()))
    for line in shown(message).splitlines():
        sys.stderr.write(f"convoy: {line}\n")
    return code


def usage_fault(error: CycloptsError) -> str:
    """What is wrong with a command line; a parameter given like an option is told where it belongs."""
    message = first_line(error).rstrip(".")
    if "Unused Tokens" in message:
        message += ": a parameter is changed by --set KEY.PATH=VALUE, in one word"
    elif "Unknown option" in message:
        message += ": parameters of a recipe are changed by --set KEY.PATH=VALUE (./convoy parameters FAMILY)"
    elif "Available commands" in message and message.endswith(", "):  # Cyclopts lists the first eight
        return f"{message}…; ./convoy --help lists them all"
    return f"{message}; --help after the command explains it"


def given_fault(error: Exception) -> str:
    """What a person gave that cannot be; the system's own words about a file follow its name."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


def first_line(error: BaseException) -> str:
    """The error's kind, unless it is one of ours that speaks for itself, and its first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    speaks = isinstance(error, CycloptsError | RuntimeError | FloatingPointError | ConnectionError) and lines
    return lines[0] if speaks else ": ".join([type(error).__name__, *lines[:1]])

"""The command line of `util.report`, without what takes seconds to import."""

from util.command import Parser, positive

parser = Parser(prog="python -m util.report", description="Write one HTML page about the runs in some folders.")
add = parser.add_argument
add("results", nargs="*", default=["results"], metavar="FOLDER",
    help="runs, or folders with runs below them, in the order in which they are shown; default: results")
add("--out", metavar="FILE", help="the page; default report.html in the first folder")
add("--title", default="Restorations", help="its heading; default %(default)s")
add("--label", action="append", default=[], metavar="FOLDER=NAME", dest="labels",
    help="what the runs in a folder are called; repeatable; default: the method, and what distinguishes its runs")
add("--images", type=positive, default=6, metavar="N",
    help="pictures of the first N images of each task; default %(default)s")
parse_arguments = parser.parse

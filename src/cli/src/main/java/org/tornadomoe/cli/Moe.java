package org.tornadomoe.cli;

import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.lang.reflect.Constructor;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.logging.Level;
import java.util.logging.Logger;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.tornadomoe.checkpoint.CheckpointName;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.Printable;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeExecutionException;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.HelpCommand;
import picocli.CommandLine.IVersionProvider;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * The command. Results go to standard output, everything else to standard error. Exit status: {@value #DONE} done,
 * {@value #NO} a check failed, {@value #BAD_INPUT} bad usage, bad input or a result that could not be written, with one
 * line that names the file, tensor or option; {@value #NO_USE_FOR_SDK} only for the launcher.
 */
@Command(
        name = "moe",
        description = "Runs int8 mixture-of-experts layers on GPUs (through TornadoVM) or on the CPU.",
        mixinStandardHelpOptions = true,
        footerHeading = "%nExamples:%n",
        footer = {
            "  moe run DIR               runs layer 0 of a checkpoint, prints its time and error",
            "  moe devices               lists the devices of this machine",
            "  moe help run              lists the options of a command",
            "  . <(moe completion)       turns on completion in bash, and in zsh after bashcompinit"
        },
        scope = ScopeType.INHERIT,
        versionProvider = Moe.Version.class,
        subcommands = {
            Devices.class,
            Run.class,
            Verify.class,
            Explain.class,
            Bench.class,
            Tune.class,
            Quantize.class,
            Inspect.class,
            Completion.class,
            HelpCommand.class
        })
public final class Moe {
    static final int DONE = 0;
    static final int NO = 1;
    static final int BAD_INPUT = 2;

    /** The launcher started this JVM with an SDK that doesn't work; it should start the interpreter instead. */
    static final int NO_USE_FOR_SDK = 75;

    private static final String LINE_OF_LOG = "java.util.logging.SimpleFormatter.format";
    private static final Logger LIBRARY = Logger.getLogger("org.tornadomoe");
    private static final Logger TUNING = Logger.getLogger("org.tornadomoe.tuning");

    final Map<String, String> environment;

    /** Notes for the user beside the result; not printed if a command fails. */
    final List<String> notes = new ArrayList<>();

    private Moe(Map<String, String> environment) {
        this.environment = environment;
    }

    /**
     * Runs a command and ends the JVM with its exit status. {@code MOE_RESULTS} names a file for the results: native
     * libraries print on standard output, and the launcher sends that to standard error.
     */
    public static void main(String[] args) throws IOException {
        if (System.getProperty("java.util.logging.config.file") == null) {
            LIBRARY.setLevel(Level.WARNING); // the result has the oracle's choice
            TUNING.setLevel(Level.SEVERE); // 'moe explain' says whether there is a file
        }
        if (System.getProperty(LINE_OF_LOG) == null) {
            System.setProperty(LINE_OF_LOG, "moe: %5$s%6$s%n"); // one line per record
        }
        System.setErr(standardError());
        String elsewhere = System.getenv("MOE_RESULTS");
        PrintStream results = elsewhere == null
                ? System.out
                : new PrintStream(new FileOutputStream(elsewhere, true), false, System.out.charset());
        // Output of TornadoVM or another library must not get between results.
        System.setOut(System.err);
        System.exit(run(writer(results), writer(System.err), System.getenv(), args));
    }

    /**
     * Standard error. The launcher starts this JVM with a pipe as standard error, to filter Java's warning about the
     * Vector API's module, and with the real standard error under another file descriptor.
     */
    private static PrintStream standardError() {
        Integer number = Integer.getInteger("tornadomoe.err");
        if (number == null) {
            return System.err;
        }
        try {
            Constructor<FileDescriptor> descriptor = FileDescriptor.class.getDeclaredConstructor(int.class);
            descriptor.setAccessible(true);
            return new PrintStream(new FileOutputStream(descriptor.newInstance(number)), true, System.err.charset());
        } catch (ReflectiveOperationException | RuntimeException notOpened) {
            return System.err; // the pipe passes the rest on
        }
    }

    private static PrintWriter writer(PrintStream stream) {
        return new PrintWriter(stream, true, stream.charset());
    }

    /**
     * Runs a command.
     *
     * @param environment {@code MOE_DEBUG} set to 1 shows stack traces; {@code MOE_LAUNCHER} set to 1 says that the
     *     launcher started this JVM with an SDK
     * @return the exit status
     */
    static int run(PrintWriter out, PrintWriter err, Map<String, String> environment, String... args) {
        boolean debug = "1".equals(environment.get("MOE_DEBUG"));
        CommandLine command = new CommandLine(new Moe(environment))
                .setOut(out)
                .setErr(err)
                .setCaseInsensitiveEnumValuesAllowed(true)
                .setUsageHelpWidth(Output.width(environment))
                .setExpandAtFiles(false)
                .registerConverter(Path.class, Moe::path)
                .registerConverter(CheckpointName.class, name -> new CheckpointName(path(name), environment))
                .registerConverter(Int8Scheme.class, Moe::scheme)
                .setParameterExceptionHandler((problem, _) -> misused(problem, debug))
                .setExecutionExceptionHandler((failure, at, _) -> failed(failure, at.getErr(), debug));
        int status;
        try {
            status = command.execute(args);
        } catch (Error failure) { // picocli doesn't catch errors
            status = failed(failure, err, debug);
        }
        if (out.checkError()) { // also flushes it
            err.println("moe: standard output cannot be written");
            status = BAD_INPUT;
        }
        err.flush();
        return status;
    }

    private static Path path(String name) {
        try {
            return Path.of(name);
        } catch (InvalidPathException wrong) {
            throw new TypeConversionException(unspeakable(wrong));
        }
    }

    /**
     * The message for a name that the locale can't encode. The JVM encodes names in the locale's charset; if that lacks
     * a character, the file can't be opened.
     */
    private static String unspeakable(InvalidPathException wrong) {
        String encoding = System.getProperty("sun.jnu.encoding");
        return String.valueOf(wrong.getMessage()).contains("unmappable characters")
                ? "'" + wrong.getInput() + "' has characters that this JVM cannot write in a file's name: its locale's"
                        + " encoding is " + encoding + "; start it with another locale, such as LC_ALL=C.UTF-8"
                : String.valueOf(wrong.getMessage());
    }

    private static Int8Scheme scheme(String name) {
        try {
            return Int8Scheme.fromString(name);
        } catch (IllegalArgumentException unknown) {
            throw new TypeConversionException(unknown.getMessage());
        }
    }

    /** The command with all subcommands and options, for the generator of the reference page. */
    static CommandLine commandLine() {
        return new CommandLine(new Moe(Map.of()));
    }

    private static int misused(ParameterException problem, boolean debug) {
        CommandLine at = problem.getCommandLine();
        CommandSpec spec = at.getCommandSpec();
        String known = "";
        if (!spec.subcommands().isEmpty()) {
            known = known("commands", List.copyOf(spec.subcommands().keySet()), problem);
        } else if (problem instanceof UnmatchedArgumentException) {
            List<String> names = spec.options().stream()
                    .flatMap(option -> Stream.of(option.names()))
                    .filter(name -> name.startsWith("--"))
                    .toList();
            known = known("options", names, problem);
        }
        complain(
                at.getErr(),
                spec.qualifiedName() + ": "
                        + String.valueOf(problem.getMessage()).replaceFirst("^Error: ", "") + known,
                problem,
                debug);
        return BAD_INPUT;
    }

    /** The name that was probably meant, or else all names. */
    private static String known(String what, List<String> names, ParameterException problem) {
        String nearest = problem instanceof UnmatchedArgumentException unmatched
                ? Nearest.of(unmatched.getUnmatched().getFirst().replaceFirst("=.*", ""), names)
                : null;
        return nearest == null
                ? "; the " + what + " are " + String.join(", ", names)
                : "; did you mean '" + nearest + "'?";
    }

    private static int failed(Throwable failure, PrintWriter err, boolean debug) {
        if (failure instanceof Target.NoUseForSdkException) {
            complain(err, "moe: " + failure.getMessage(), failure, debug);
            return NO_USE_FOR_SDK;
        }
        String said = switch (failure) {
            case InvalidPathException wrong -> unspeakable(wrong);
            case CheckpointException _,
                    IllegalArgumentException _,
                    InsufficientMemoryException _,
                    MoeExecutionException _,
                    UnsupportedOperationException _ -> String.valueOf(failure.getMessage());
            case OutOfMemoryError _ ->
                "out of memory: " + failure.getMessage() + " (JDK_JAVA_OPTIONS=-Xmx... gives Java more)";
            default -> "this should not have happened: " + failure + " (MOE_DEBUG=1 shows where)";
        };
        complain(err, "moe: " + said, failure, debug);
        return BAD_INPUT;
    }

    private static void complain(PrintWriter err, String problem, Throwable cause, boolean debug) {
        err.println(Printable.message(Nearest.suggest(oneLine(problem))));
        if (debug) {
            StringWriter trace = new StringWriter();
            cause.printStackTrace(new PrintWriter(trace));
            err.print(Printable.visible(trace.toString()));
        }
    }

    private static String oneLine(String text) {
        return text.lines().map(String::strip).filter(line -> !line.isEmpty()).collect(Collectors.joining("; "));
    }

    /** The version of the jar. */
    static final class Version implements IVersionProvider {
        @Override
        public String[] getVersion() {
            String version = Moe.class.getPackage().getImplementationVersion();
            return new String[] {"tornado-moe " + (version == null ? "(not from a jar)" : version)};
        }
    }
}

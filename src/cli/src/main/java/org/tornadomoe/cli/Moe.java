package org.tornadomoe.cli;

import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.logging.Level;
import java.util.logging.Logger;
import java.util.stream.Collectors;
import org.tornadomoe.checkpoint.CheckpointException;
import org.tornadomoe.checkpoint.Printable;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeExecutionException;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.IVersionProvider;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.ScopeType;
import picocli.CommandLine.TypeConversionException;
import picocli.CommandLine.UnmatchedArgumentException;

/**
 * The command. Results go to standard output, everything else to standard error. Exit status: {@value #DONE} done,
 * {@value #NO} the answer is no, {@value #BAD_INPUT} bad usage or bad input, with one line that names the file, tensor
 * or option, or a result that could not be written; {@value #NO_USE_FOR_SDK} to the launcher only.
 */
@Command(
        name = "moe",
        description = "An int8 mixture-of-experts layer on TornadoVM.",
        mixinStandardHelpOptions = true,
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
            Inspect.class
        })
public final class Moe {
    static final int DONE = 0;
    static final int NO = 1;
    static final int BAD_INPUT = 2;

    /** The launcher started this JVM with an SDK that is of no use: it is to start the interpreter instead. */
    static final int NO_USE_FOR_SDK = 75;

    private static final Logger LIBRARY = Logger.getLogger("org.tornadomoe");
    private static final Logger TUNING = Logger.getLogger("org.tornadomoe.tuning");

    final Map<String, String> environment;

    private Moe(Map<String, String> environment) {
        this.environment = environment;
    }

    /**
     * Runs a command and ends the JVM with its exit status. {@code MOE_RESULTS} names a file for the results: native
     * libraries print on standard output, and the launcher sends that to standard error.
     */
    public static void main(String[] args) throws IOException {
        if (System.getProperty("java.util.logging.config.file") == null) {
            LIBRARY.setLevel(Level.WARNING); // what the oracle chose is in the result
            TUNING.setLevel(Level.SEVERE); // 'moe explain' tells whether there is a file
        }
        String elsewhere = System.getenv("MOE_RESULTS");
        PrintStream results = elsewhere == null
                ? System.out
                : new PrintStream(new FileOutputStream(elsewhere, true), false, System.out.charset());
        // What TornadoVM or another library prints must not end up between results.
        System.setOut(System.err);
        System.exit(run(writer(results), writer(System.err), System.getenv(), args));
    }

    private static PrintWriter writer(PrintStream stream) {
        return new PrintWriter(stream, true, stream.charset());
    }

    /**
     * Runs a command.
     *
     * @param environment {@code MOE_DEBUG} set to 1 shows stack traces; {@code MOE_LAUNCHER} set to 1 tells that the
     *     launcher started this JVM with an SDK
     * @return the exit status
     */
    static int run(PrintWriter out, PrintWriter err, Map<String, String> environment, String... args) {
        boolean debug = "1".equals(environment.get("MOE_DEBUG"));
        CommandLine command = new CommandLine(new Moe(environment))
                .setOut(out)
                .setErr(err)
                .setCaseInsensitiveEnumValuesAllowed(true)
                .setExpandAtFiles(false)
                .registerConverter(Path.class, Moe::path)
                .registerConverter(Checkpoint.class, name -> new Checkpoint(path(name), environment))
                .registerConverter(Int8Scheme.class, Moe::scheme)
                .setParameterExceptionHandler((problem, _) -> misused(problem, debug))
                .setExecutionExceptionHandler((failure, at, _) -> failed(failure, at.getErr(), debug));
        int status;
        try {
            status = command.execute(args);
        } catch (Error failure) { // which picocli doesn't catch
            status = failed(failure, err, debug);
        }
        if (out.checkError()) { // which flushes it
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

    /** The JVM turns names into bytes as the locale says; one that lacks a character leaves no way to the file. */
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

    private static int misused(ParameterException problem, boolean debug) {
        CommandLine at = problem.getCommandLine();
        CommandSpec spec = at.getCommandSpec();
        String known = "";
        if (!spec.subcommands().isEmpty()) {
            known = "; the commands are " + String.join(", ", spec.subcommands().keySet());
        } else if (problem instanceof UnmatchedArgumentException) {
            List<String> names =
                    spec.options().stream().map(OptionSpec::longestName).toList();
            known = "; the options are " + String.join(", ", names);
        }
        complain(
                at.getErr(),
                spec.qualifiedName() + ": "
                        + String.valueOf(problem.getMessage()).replaceFirst("^Error: ", "") + known,
                problem,
                debug);
        return BAD_INPUT;
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
        err.println(Printable.message(oneLine(problem)));
        if (debug) {
            StringWriter trace = new StringWriter();
            cause.printStackTrace(new PrintWriter(trace));
            err.print(Printable.visible(trace.toString()));
        }
    }

    private static String oneLine(String text) {
        return text.lines().map(String::strip).filter(line -> !line.isEmpty()).collect(Collectors.joining("; "));
    }

    /** The version of the jar this runs from. */
    static final class Version implements IVersionProvider {
        @Override
        public String[] getVersion() {
            String version = Moe.class.getPackage().getImplementationVersion();
            return new String[] {"tornado-moe " + (version == null ? "(not from a jar)" : version)};
        }
    }
}

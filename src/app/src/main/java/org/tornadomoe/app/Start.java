package org.tornadomoe.app;

import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.management.ManagementFactory;
import java.net.URISyntaxException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;

/**
 * {@code java -jar moe.jar COMMAND ...}: runs the command in a second JVM, on a suitable JDK and with the options that
 * it needs, including TornadoVM's if {@code TORNADOVM_HOME} names an SDK. Compiled for Java 8, so that an old JVM can
 * say what is missing.
 */
@SuppressWarnings({"NullAway", "SystemConsoleNull"}) // Java 8's console may be null; no annotations here
public final class Start {
    private static final int NEEDED = 25;
    private static final int BAD_INPUT = 2;

    /** The command's exit status if the SDK doesn't work; it is then started without. */
    private static final int NO_USE_FOR_SDK = 75;

    private static final String WARNING = "WARNING: Using incubator modules: jdk.incubator.vector";

    private Start() {}

    /** Ends the JVM with the command's exit status. */
    public static void main(String[] args) throws IOException, InterruptedException, URISyntaxException {
        String jdk = jdk();
        if (jdk == null) {
            System.err.println("moe: no JDK " + NEEDED + " or newer here (this is " + System.getProperty("java.version")
                    + "): get one from https://adoptium.net, or set JAVA_HOME");
            System.exit(BAD_INPUT);
        }
        Path jar = Paths.get(
                Start.class.getProtectionDomain().getCodeSource().getLocation().toURI());
        File sdk = sdk();
        int status = sdk == null ? NO_USE_FOR_SDK : run(jdk, jar, sdk, args);
        if (status == NO_USE_FOR_SDK) {
            status = run(jdk, jar, null, args);
        }
        System.exit(status);
    }

    /** The home of the first JDK that is new enough: this one or one in the usual places; null if there is none. */
    private static String jdk() {
        List<String> homes = new ArrayList<>();
        homes.add(System.getProperty("java.home"));
        homes.add(System.getenv("JAVA_HOME"));
        String user = System.getProperty("user.home");
        for (String folder : Arrays.asList(
                "/usr/lib/jvm",
                "/usr/java",
                "/opt/java",
                user + "/.sdkman/candidates/java",
                user + "/.jdks",
                "/Library/Java/JavaVirtualMachines",
                "C:\\Program Files\\Java",
                "C:\\Program Files\\Eclipse Adoptium",
                "C:\\Program Files\\Microsoft")) {
            File[] there = new File(folder).listFiles();
            for (File home : there == null ? new File[0] : there) {
                homes.add(home.getPath());
                homes.add(home + "/Contents/Home");
            }
        }
        for (String home : homes) {
            if (home != null && major(home) >= NEEDED) {
                return home;
            }
        }
        return null;
    }

    /** A JDK's major version, from its file {@code release}; 0 if there is none. */
    private static int major(String home) {
        for (String line : release(home)) {
            if (line.startsWith("JAVA_VERSION=\"")) {
                String digits = line.substring(14).replaceFirst("[^0-9].*", "");
                return digits.isEmpty() || digits.length() > 3 ? 0 : Integer.parseInt(digits);
            }
        }
        return 0;
    }

    private static List<String> release(String home) {
        try {
            return Files.readAllLines(Paths.get(home, "release"), StandardCharsets.UTF_8);
        } catch (IOException | RuntimeException none) {
            return new ArrayList<>();
        }
    }

    /** TornadoVM's SDK; null if there is none, or it isn't wanted. */
    private static File sdk() {
        String home = System.getenv("TORNADOVM_HOME");
        return home == null || System.getenv("MOE_NO_SDK") != null || !new File(home, "tornado-argfile").isFile()
                ? null
                : new File(home);
    }

    private static int run(String jdk, Path jar, File sdk, String[] args) throws IOException, InterruptedException {
        boolean windows = System.getProperty("os.name").toLowerCase(Locale.ROOT).contains("windows");
        List<String> command = new ArrayList<>();
        command.add(Paths.get(jdk, "bin", windows ? "java.exe" : "java").toString());
        command.addAll(ManagementFactory.getRuntimeMXBean().getInputArguments());
        if (sdk != null) {
            command.add("@" + new File(sdk, "tornado-argfile"));
            // Makes a kernel that cannot be compiled an error, and prefers other backends to OpenCL, the default, which
            // has no tensor cores.
            command.addAll(Arrays.asList(
                    "-Dtornado.recover.bailout=False",
                    "-Dtornado.cuda.priority=30",
                    "-Dtornado.ptx.priority=20",
                    "-Dtornado.tvm.maxbytecodesize=262144",
                    "--add-opens=tornado.drivers.cuda/uk.ac.manchester.tornado.drivers.cuda=ALL-UNNAMED"));
        }
        for (String line : release(jdk)) {
            if (line.startsWith("MODULES=") && line.contains("jdk.incubator.vector")) {
                command.addAll(Arrays.asList("--add-modules", "jdk.incubator.vector"));
            }
        }
        // The child's error stream is a pipe; a console here means that a user watches.
        command.add("-Dtornadomoe.terminal=" + (System.console() == null ? "" : "1"));
        command.addAll(
                Arrays.asList("--enable-native-access=ALL-UNNAMED", "-cp", jar.toString(), "org.tornadomoe.cli.Moe"));
        command.addAll(Arrays.asList(args));

        ProcessBuilder builder = new ProcessBuilder(command).inheritIO().redirectError(ProcessBuilder.Redirect.PIPE);
        // Drivers print on standard output, which is for results, so the results come through a file.
        Path results = null;
        if (sdk != null) {
            results = Files.createTempFile("moe", ".out");
            builder.environment().put("MOE_LAUNCHER", "1");
            builder.environment().put("MOE_RESULTS", results.toString());
            builder.redirectOutput(ProcessBuilder.Redirect.to(new File(windows ? "NUL" : "/dev/null")));
        }
        try {
            Process jvm = builder.start();
            Runtime.getRuntime().addShutdownHook(new Thread(jvm::destroy));
            passOn(jvm.getErrorStream());
            int status = jvm.waitFor();
            if (results != null) {
                Files.copy(results, System.out);
                System.out.flush();
            }
            return status;
        } finally {
            if (results != null) {
                Files.deleteIfExists(results);
            }
        }
    }

    /**
     * Passes on the child's standard error, without Java's warning about the Vector API's module, which comes first.
     */
    private static void passOn(InputStream err) throws IOException {
        byte[] first = new byte[0];
        byte[] some = new byte[8192];
        boolean started = false;
        for (int count = err.read(some); count >= 0; count = err.read(some)) {
            if (started) {
                write(some, 0, count);
                continue;
            }
            int before = first.length;
            first = Arrays.copyOf(first, before + count);
            System.arraycopy(some, 0, first, before, count);
            String text = new String(first, StandardCharsets.ISO_8859_1);
            int end = text.indexOf('\n');
            if (end >= 0 || !WARNING.startsWith(text)) {
                int from = end >= 0 && text.substring(0, end).trim().equals(WARNING) ? end + 1 : 0;
                write(first, from, first.length - from);
                started = true;
            }
        }
        if (!started) {
            write(first, 0, first.length);
        }
    }

    private static void write(byte[] bytes, int from, int count) {
        OutputStream err = System.err;
        try {
            err.write(bytes, from, count);
            err.flush();
        } catch (IOException closed) {
            return; // nobody reads it
        }
    }
}

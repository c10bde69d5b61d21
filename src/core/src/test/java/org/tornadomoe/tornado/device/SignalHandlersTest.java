package org.tornadomoe.tornado.device;

import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.reflect.Proxy;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;

/** With a library that takes signal handlers as PoCL and its LLVM do, each time in a JVM of its own. */
@EnabledOnOs(
        value = OS.LINUX,
        architectures = {"amd64", "aarch64"})
@Timeout(120)
class SignalHandlersTest {
    private static final String JAVA_HOME = System.getProperty("java.home");

    /** All that the library takes and the JVM has a handler for. */
    private static final String[] TAKEN = {
        "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGXFSZ", "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR2"
    };

    @TempDir
    static Path directory;

    private static @Nullable String noCompiler;

    @BeforeAll
    static void build() throws Exception {
        Path log = directory.resolve("cc.log");
        try {
            Process cc = new ProcessBuilder(
                            "cc",
                            "-shared",
                            "-fPIC",
                            "-D_GNU_SOURCE",
                            "-o",
                            library(),
                            "src/core/src/test/resources/native/driver.c")
                    .redirectErrorStream(true)
                    .redirectOutput(log.toFile())
                    .start();
            assertThat(cc.waitFor()).as(Files.readString(log)).isZero();
        } catch (IOException missing) {
            noCompiler = "no C compiler: " + missing.getMessage();
        }
    }

    private static String library() {
        return directory.resolve("libdriver.so").toString();
    }

    /** What {@link Child} prints, in which every implicit exception came as it should. */
    private static List<String> child(String preload, String... steps) throws Exception {
        assumeTrue(noCompiler == null, String.valueOf(noCompiler));
        String start = List.of(steps).contains("ignored") ? "trap '' HUP; exec \"$@\"" : "exec \"$@\"";
        List<String> command = new ArrayList<>(List.of(
                "sh",
                "-c",
                start,
                "sh",
                JAVA_HOME + "/bin/java",
                "-Xmx64m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1")); // implicit exceptions come by signals from C1's code, too
        if (preload.isEmpty() && steps[0].equals("compile")) {
            command.add("-Xint"); // without compiled code no signal changes what the library did
        }
        command.addAll(List.of(
                "--enable-native-access=ALL-UNNAMED",
                "-cp",
                System.getProperty("java.class.path"),
                Child.class.getName(),
                library()));
        command.addAll(List.of(steps));
        Path log = directory.resolve("child.log");
        ProcessBuilder builder =
                new ProcessBuilder(command).redirectErrorStream(true).redirectOutput(log.toFile());
        builder.environment().put("LD_PRELOAD", preload);
        builder.environment().remove("JDK_JAVA_OPTIONS");
        builder.environment().remove("JAVA_TOOL_OPTIONS");
        Process jvm = builder.start();
        try {
            assertThat(jvm.waitFor(100, TimeUnit.SECONDS)).isTrue();
        } finally {
            jvm.destroyForcibly();
        }
        List<String> lines = Files.readAllLines(log);
        assertThat(jvm.exitValue()).as(String.join("\n", lines)).isZero();
        return lines;
    }

    /** The signals whose action isn't what it was when the child began, with whose it is. */
    private static Map<String, String> changed(List<String> lines) {
        return lines.stream()
                .filter(line -> line.startsWith("changed "))
                .map(line -> line.split(" "))
                .collect(Collectors.toMap(words -> words[1], words -> words[2]));
    }

    private static Stream<String> warnings(List<String> lines) {
        return lines.stream().filter(line -> line.contains("LD_PRELOAD="));
    }

    private static String jsig() {
        return Stream.of("lib/libjsig.so", "lib/server/libjsig.so")
                .map(name -> Path.of(JAVA_HOME, name))
                .filter(Files::exists)
                .findFirst()
                .orElseThrow()
                .toString();
    }

    @Test
    void theLibraryTakesWhatNobodyKeeps() throws Exception {
        assertThat(changed(child("", "compile")))
                .containsOnlyKeys(TAKEN)
                .allSatisfy((_, owner) -> assertThat(owner).isEqualTo(library()));
    }

    @Test
    void whatAStepTakesIsBackAtItsEnd() throws Exception {
        List<String> lines = child("", "begin", "compile", "end", "hammer");
        assertThat(changed(lines)).isEmpty();
        assertThat(warnings(lines))
                .singleElement()
                .asString()
                .contains("(" + library() + ")", "SIGSEGV, SIGBUS, SIGFPE, SIGILL", "LD_PRELOAD=" + jsig());
    }

    @Test
    void itIsBackAtTheEndOfWhicheverStepEndsFirstAndSaidOnce() throws Exception {
        assertThat(changed(child("", "begin", "compile", "begin", "end"))).isEmpty();
        List<String> lines = child("", "begin", "begin", "compile", "end", "compile", "end", "begin", "compile", "end");
        assertThat(changed(lines)).isEmpty();
        assertThat(warnings(lines)).hasSize(1);
    }

    @Test
    void theFaultsAreBackAlsoWhereADriverCameFirst() throws Exception {
        List<String> lines = child("", "compile", "begin", "end");
        assertThat(changed(lines)).containsOnlyKeys("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR2");
        assertThat(warnings(lines)).hasSize(1);
        assertThat(changed(child("", "begin", "end", "compile", "begin", "end", "hammer")))
                .isEmpty();
    }

    @Test
    void aCrashReportersHandlersStay() throws Exception {
        for (List<String> steps : List.of(
                List.of("report", "begin", "compile", "end"),
                List.of("begin", "end", "report", "begin", "compile", "end"))) {
            assertThat(changed(child("", steps.toArray(String[]::new)))).containsOnlyKeys("SIGBUS", "SIGFPE", "SIGILL");
        }
    }

    /** Under nohup SIGHUP is ignored. */
    @Test
    void aSignalThatIsIgnoredStaysSoUnlessJavaHandlesIt() throws Exception {
        assertThat(changed(child("", "ignored", "begin", "compile", "end"))).isEmpty();
        assertThat(changed(child("", "ignored", "begin", "compile", "handle", "end")))
                .hasSize(1)
                .hasEntrySatisfying("SIGHUP", owner -> assertThat(owner).endsWith("/libjvm.so"));
    }

    @Test
    void withLibjsigThereIsNothingToPutBackOfTheFaults() throws Exception {
        List<String> lines = child(jsig(), "compile", "hammer");
        assertThat(changed(lines)).containsOnlyKeys("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR2");
        lines = child(jsig(), "begin", "compile", "end", "hammer");
        assertThat(changed(lines)).isEmpty();
        assertThat(warnings(lines)).isEmpty();
    }

    /** LIBRARY STEP...: does the steps in their order, then prints what has changed. */
    static final class Child {
        private static final int THREADS = 4;
        private static final int ROUNDS = 10_000;

        private static int zero;

        private static final class Box {
            int value;
        }

        public static void main(String[] args) throws Throwable {
            SignalHandlers handlers = requireNonNull(SignalHandlers.open());
            Map<SignalHandlers.Signal, MemorySegment> first = actions(handlers);
            Deque<SignalHandlers.Step> steps = new ArrayDeque<>();
            for (String step : List.of(args).subList(1, args.length)) {
                switch (step) {
                    case "begin" -> steps.push(handlers.begin());
                    case "end" -> steps.pop().close();
                    case "compile", "report" -> call(args[0], step);
                    case "handle" -> handleHangUp();
                    case "hammer" -> hammer();
                    default -> {}
                }
            }
            Map<SignalHandlers.Signal, MemorySegment> last = actions(handlers);
            first.forEach((signal, action) -> {
                MemorySegment now = requireNonNull(last.get(signal));
                if (now.mismatch(action) >= 0) {
                    IO.println("changed " + signal + " " + handlers.owner(now));
                }
            });
        }

        private static Map<SignalHandlers.Signal, MemorySegment> actions(SignalHandlers handlers) {
            Map<SignalHandlers.Signal, MemorySegment> actions = new EnumMap<>(SignalHandlers.Signal.class);
            for (SignalHandlers.Signal signal : SignalHandlers.Signal.values()) {
                actions.put(signal, handlers.action(signal));
            }
            return actions;
        }

        @SuppressWarnings("restricted")
        private static void call(String library, String function) throws Throwable {
            MemorySegment symbol =
                    SymbolLookup.libraryLookup(library, Arena.global()).findOrThrow(function);
            int error = (int) Linker.nativeLinker()
                    .downcallHandle(symbol, FunctionDescriptor.of(JAVA_INT))
                    .invokeExact();
            if (error != 0) {
                throw new IllegalStateException(function);
            }
        }

        /** By reflection, since javac warns of these classes. */
        private static void handleHangUp() throws ReflectiveOperationException {
            Class<?> signal = Class.forName("sun.misc.Signal");
            Class<?> handler = Class.forName("sun.misc.SignalHandler");
            Object nothing =
                    Proxy.newProxyInstance(handler.getClassLoader(), new Class<?>[] {handler}, (_, _, _) -> null);
            signal.getMethod("handle", signal, handler)
                    .invoke(null, signal.getConstructor(String.class).newInstance("HUP"), nothing);
        }

        /** Null references and divisions by zero in compiled code and several threads: each a signal for the JVM. */
        private static void hammer() throws InterruptedException {
            AtomicInteger right = new AtomicInteger();
            List<Thread> threads = IntStream.range(0, THREADS)
                    .mapToObj(t -> Thread.ofPlatform()
                            .start(() -> IntStream.range(0, ROUNDS)
                                    .forEach(i ->
                                            right.addAndGet(valueIsMissing(null) && divisionIsRefused(i) ? 1 : 0))))
                    .toList();
            for (Thread thread : threads) {
                thread.join();
            }
            if (right.get() != THREADS * ROUNDS) {
                throw new IllegalStateException(right + " of " + THREADS * ROUNDS + " came as they should");
            }
        }

        @SuppressWarnings("NullAway") // that is the point
        private static boolean valueIsMissing(@Nullable Box box) {
            try {
                return box.value > 0;
            } catch (NullPointerException expected) {
                return true;
            }
        }

        private static boolean divisionIsRefused(int i) {
            try {
                return i / zero > 1;
            } catch (ArithmeticException expected) {
                return true;
            }
        }
    }
}

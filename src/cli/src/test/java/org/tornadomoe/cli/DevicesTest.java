package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.File;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;
import uk.ac.manchester.tornado.api.TaskGraph;

/** What {@code moe devices} says in JVMs that have TornadoVM's API or have it not. */
class DevicesTest {
    private static final URI INTERPRETER = URI.create(
            TaskGraph.class.getProtectionDomain().getCodeSource().getLocation().toString());

    /** What a JVM says that has this one's class path, as far as it is let through. */
    private static String devicesIn(Map<String, String> environment, Predicate<String> entries) throws Exception {
        List<String> path = Pattern.compile(File.pathSeparator, Pattern.LITERAL)
                .splitAsStream(System.getProperty("java.class.path"))
                .filter(entries)
                .toList();
        ProcessBuilder java = new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-XX:TieredStopAtLevel=1",
                "-XX:+UseSerialGC",
                "-cp",
                String.join(File.pathSeparator, path),
                Moe.class.getName(),
                "devices");
        java.environment().put("COLUMNS", "300");
        java.environment().remove("TORNADOVM_HOME");
        java.environment().remove("MOE_LAUNCHER");
        java.environment().putAll(environment);
        Process process = java.redirectErrorStream(true).start();
        String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
        assertThat(process.waitFor()).as(output).isZero();
        return output;
    }

    @Test
    void withoutAnyApiItSaysWhatToAdd() throws Exception {
        assertThat(devicesIn(Map.of(), entry -> !Path.of(entry).toUri().equals(INTERPRETER)))
                .contains("none: TornadoVM's API is not on the class path: add the tornado-moe-interpreter jar")
                .contains("CpuExperts on cpu");
    }

    @Test
    void theInterpreterSaysThatThereIsNoSdkOrThatItsArgumentFileIsMissing() throws Exception {
        assertThat(devicesIn(Map.of(), entry -> true))
                .contains("interpreter: no TornadoVM SDK (TORNADOVM_HOME is not set)");
        assertThat(devicesIn(Map.of("TORNADOVM_HOME", "/opt/tornadovm"), entry -> true))
                .contains("interpreter: TornadoVM's SDK is at /opt/tornadovm, but this JVM was started without its"
                        + " argument file");
    }
}

package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.EnabledIfSystemProperty;
import org.junit.jupiter.api.io.TempDir;

/** {@code examples/spring-boot}, built, started and asked by the commands of {@code docs/spring-boot.md}. */
@EnabledIfSystemProperty(
        named = "consumer.spring",
        matches = "true",
        disabledReason = "Spring Boot is much to download: -Dconsumer.spring=true")
@Timeout(value = 10, unit = TimeUnit.MINUTES)
class SpringBootIT {
    @TempDir
    Path project;

    @TempDir
    Path repository;

    private static String command(String start) throws IOException {
        return Files.readString(Path.of("docs/spring-boot.md"))
                .replaceAll("\\\\\n\\s+", "")
                .lines()
                .map(String::strip)
                .filter(line -> line.startsWith(start))
                .findFirst()
                .orElseThrow();
    }

    @Test
    void theServiceAnswers() throws Exception {
        Path example = Path.of("examples/spring-boot");
        for (String file : List.of("pom.xml", "src/main/java/example/App.java")) {
            Path copy = project.resolve(file);
            Files.createDirectories(copy.getParent());
            Files.copy(example.resolve(file), copy);
        }
        InstalledLibrary library = new InstalledLibrary(repository);
        library.run(project, "-ntp", command("mvn "));
        int port;
        try (ServerSocket free = new ServerSocket(0)) {
            port = free.getLocalPort();
        }
        String start = command("java --add-modules")
                .replace("java ", "exec " + InstalledLibrary.JAVA + " ")
                .replace(
                        "CHECKPOINT",
                        Path.of("src/test/resources/golden/hf/mixtral").toAbsolutePath() + " --server.port=" + port);
        Process service = new ProcessBuilder("sh", "-c", start)
                .directory(project.toFile())
                .redirectErrorStream(true)
                .redirectOutput(project.resolve("service.log").toFile())
                .start();
        try {
            String health = ask(library, command("curl -s localhost:8080/actuator/health"), port);
            for (int i = 0; i < 100 && !health.contains("UP") && service.isAlive(); i++) {
                Thread.sleep(1000);
                health = ask(library, command("curl -s localhost:8080/actuator/health"), port);
            }
            assertThat(health)
                    .as(Files.readString(project.resolve("service.log")))
                    .contains("\"status\":\"UP\"");
            assertThat(ask(library, command("curl -s localhost:8080/forward"), port)
                            .split(","))
                    .hasSize(128);
            assertThat(ask(library, command("curl -s localhost:8080/actuator/metrics"), port))
                    .contains("\"COUNT\"");
        } finally {
            service.destroy();
            service.waitFor(10, TimeUnit.SECONDS);
            service.destroyForcibly();
        }
    }

    private String ask(InstalledLibrary library, String curl, int port) throws IOException, InterruptedException {
        return library.run(project, curl.replace("localhost:8080", "localhost:" + port) + " || true");
    }
}

package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** On the module path services are those of module-info, on the class path those of META-INF/services. */
class ModuleInfoTest {
    private static final Path MAIN = Path.of("src/core/src/main");

    @Test
    void bothListsOfServicesAreTheSame() throws IOException {
        Matcher provided = Pattern.compile("provides (\\w+) with\\s+([^;]+);")
                .matcher(Files.readString(MAIN.resolve("java/module-info.java")));
        List<String> services = new ArrayList<>();
        while (provided.find()) {
            Path file = services().stream()
                    .filter(service -> service.toString().endsWith("." + provided.group(1)))
                    .findFirst()
                    .orElseThrow();
            assertThat(provided.group(2).strip().split(",\\s+")).containsExactlyElementsOf(Files.readAllLines(file));
            services.add(provided.group(1));
        }
        assertThat(services).hasSize(2).hasSameSizeAs(services());
    }

    private static List<Path> services() throws IOException {
        try (Stream<Path> files = Files.list(MAIN.resolve("resources/META-INF/services"))) {
            return files.toList();
        }
    }
}

package org.tornadomoe.build;

import static org.assertj.core.api.Assertions.assertThat;

import com.palantir.javaformat.java.Formatter;
import com.palantir.javaformat.java.FormatterException;
import com.palantir.javaformat.java.JavaFormatterOptions;
import com.palantir.javaformat.java.StringWrapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/**
 * Holds every Java file to palantir-java-format; with {@code -Dformat.apply=true} it rewrites them instead. It is a
 * test because a formatter inside Maven would parse Java 25 with the JDK that Maven happens to run on.
 */
class SourceFormatTest {
    private static final JavaFormatterOptions OPTIONS = JavaFormatterOptions.builder()
            .style(JavaFormatterOptions.Style.PALANTIR)
            .build();

    private static final Formatter FORMATTER = Formatter.createFormatter(OPTIONS);

    @Test
    void everySourceFileIsFormatted() throws IOException {
        assertThat(sources().parallelStream().filter(file -> !isFormatted(file)).toList())
                .as("files to format with: ./mvnw -pl src/core -am test -Dtest=SourceFormatTest -Dformat.apply=true")
                .isEmpty();
    }

    private static boolean isFormatted(Path file) {
        try {
            String source = Files.readString(file);
            String formatted = format(source);
            if (formatted.equals(source)) {
                return true;
            }
            if (Boolean.getBoolean("format.apply")) {
                Files.writeString(file, formatted);
                return true;
            }
            return false;
        } catch (IOException | FormatterException e) {
            throw new AssertionError(file.toString(), e);
        }
    }

    /**
     * As {@link Formatter#formatSourceAndFixImports}, which formats a file with a line of 120 columns three times, in
     * case it has a string to be broken.
     */
    private static String format(String source) throws FormatterException {
        String formatted = FORMATTER.formatSource(FORMATTER.fixImports(source));
        boolean stringsToReflow = !StringWrapper.getReflowReplacements(OPTIONS.maxLineLength(), formatted)
                .asMapOfRanges()
                .isEmpty();
        return stringsToReflow ? FORMATTER.formatSourceAndFixImports(source) : formatted;
    }

    /** Comments, too, which the formatter leaves alone. */
    @Test
    void linesEndAt120Columns() throws IOException {
        List<String> longer = new ArrayList<>();
        for (Path file : sources()) {
            List<String> lines = Files.readAllLines(file);
            for (int i = 0; i < lines.size(); i++) {
                if (lines.get(i).length() > 120) {
                    longer.add(file + ":" + (i + 1));
                }
            }
        }
        assertThat(longer).isEmpty();
    }

    private static List<Path> sources() throws IOException {
        List<Path> files = new ArrayList<>();
        for (Path root : List.of(Path.of("src"), Path.of("bench"), Path.of("examples"))) {
            try (Stream<Path> walk = Files.walk(root)) {
                walk.filter(file -> file.toString().endsWith(".java") && !isBuilt(file))
                        .forEach(files::add);
            }
        }
        return files;
    }

    private static boolean isBuilt(Path file) {
        for (Path name : file) {
            if (name.toString().equals("target")) {
                return true;
            }
        }
        return false;
    }
}

package org.tornadomoe.tornado.kernels;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** The texts of kernels in a device's own language, resources beside the kernels in Java. */
public final class KernelSource {
    private KernelSource() {}

    private static final Pattern INCLUDE = Pattern.compile("(?m)^#include \"([\\w.-]+)\"$");

    /**
     * The whole text of one, with the texts of those that it includes.
     *
     * @param file such as {@code hopper-gemm.cu}
     */
    public static String text(String file) {
        return INCLUDE.matcher(read(file)).replaceAll(line -> Matcher.quoteReplacement(text(line.group(1))));
    }

    /**
     * A file with a text in it, from which TornadoVM reads a prebuilt task when a plan is compiled.
     *
     * @param ending such as {@code .cl}
     */
    public static Path file(String text, String name, String ending) {
        try {
            Path file = Files.createTempFile(name, ending);
            file.toFile().deleteOnExit();
            return Files.writeString(file, text);
        } catch (IOException e) {
            throw new UncheckedIOException("a file for the kernels of " + name + ending, e);
        }
    }

    private static String read(String file) {
        try (InputStream in = KernelSource.class.getResourceAsStream(file)) {
            if (in == null) {
                throw new IllegalStateException("the library lacks its resource kernels/" + file);
            }
            return new String(in.readAllBytes(), StandardCharsets.UTF_8);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}

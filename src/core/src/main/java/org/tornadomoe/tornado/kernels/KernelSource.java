package org.tornadomoe.tornado.kernels;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;

/** The texts of kernels in a device's own language, resources beside the kernels in Java. */
public final class KernelSource {
    private KernelSource() {}

    /**
     * The whole text of one.
     *
     * @param file such as {@code hopper-gemm.cu}
     */
    public static String text(String file) {
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

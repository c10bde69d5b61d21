package org.tornadomoe.tornado.device;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.attribute.FileTime;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Instant;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HexFormat;
import java.util.List;
import java.util.function.Supplier;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * A cache of compiled kernels in a folder, because compiling takes seconds. A file's name is the SHA-256 of everything
 * that its kernel was compiled from. The file begins with the SHA-256 of the rest, so that a corrupt file is compiled
 * again. The folder is {@code -Dtornadomoe.kernelCache}, else {@code tornado-moe/kernels} in the user's cache; {@code
 * off} keeps nothing. If the file system refuses an access, it only costs time. Thread-safe, and several processes may
 * use a folder at the same time.
 *
 * @param folder null to keep nothing
 * @param most maximum size in bytes; beyond it the least recently used files are deleted
 */
record KernelCache(@Nullable Path folder, long most) {
    static final String PROPERTY = "tornadomoe.kernelCache";
    private static final long MOST = 64L << 20;
    private static final int HASH = 32;

    static KernelCache ofUser() {
        String given = System.getProperty(PROPERTY);
        if (given != null) {
            return new KernelCache(given.equals("off") ? null : Path.of(given), MOST);
        }
        String cache = System.getenv("XDG_CACHE_HOME");
        Path of = cache != null && !cache.isEmpty()
                ? Path.of(cache)
                : Path.of(System.getProperty("user.home", "."), ".cache");
        return new KernelCache(of.resolve("tornado-moe").resolve("kernels"), MOST);
    }

    /**
     * Gets a compiled kernel.
     *
     * @param key everything that it is compiled from
     * @param compile compiles it if it isn't cached
     */
    byte[] get(List<String> key, Supplier<byte[]> compile) {
        if (folder == null) {
            return compile.get();
        }
        Path file = folder.resolve(
                HexFormat.of().formatHex(hash(String.join("\0", key).getBytes(UTF_8), 0)));
        byte[] kept = read(file);
        if (kept != null) {
            return kept;
        }
        byte[] made = compile.get();
        write(folder, file, made);
        return made;
    }

    private static byte @Nullable [] read(Path file) {
        try {
            byte[] all = Files.readAllBytes(file);
            if (all.length <= HASH || !Arrays.equals(hash(all, HASH), Arrays.copyOf(all, HASH))) {
                return null;
            }
            Files.setLastModifiedTime(file, FileTime.from(Instant.now()));
            return Arrays.copyOfRange(all, HASH, all.length);
        } catch (IOException notThere) {
            return null;
        }
    }

    private void write(Path into, Path file, byte[] made) {
        try {
            Files.createDirectories(into);
            Path temporary = Files.createTempFile(into, "new", "");
            try {
                byte[] all = new byte[HASH + made.length];
                System.arraycopy(hash(made, 0), 0, all, 0, HASH);
                System.arraycopy(made, 0, all, HASH, made.length);
                Files.write(temporary, all);
                Files.move(temporary, file, StandardCopyOption.ATOMIC_MOVE);
            } finally {
                Files.deleteIfExists(temporary);
            }
            shrink(into);
        } catch (IOException | UnsupportedOperationException refused) {
            // The kernel is compiled again next time.
        }
    }

    private void shrink(Path into) throws IOException {
        record Kept(Path file, long bytes, FileTime used) {}
        List<Kept> all;
        try (Stream<Path> files = Files.list(into)) {
            all = files.map(file -> {
                        try {
                            return new Kept(file, Files.size(file), Files.getLastModifiedTime(file));
                        } catch (IOException gone) {
                            return new Kept(file, 0, FileTime.from(Instant.now()));
                        }
                    })
                    .sorted(Comparator.comparing(Kept::used).reversed())
                    .toList();
        }
        long bytes = 0;
        for (Kept kept : all) {
            bytes += kept.bytes;
            if (bytes > most) {
                Files.deleteIfExists(kept.file);
            }
        }
    }

    private static byte[] hash(byte[] of, int from) {
        try {
            MessageDigest sha = MessageDigest.getInstance("SHA-256");
            sha.update(of, from, of.length - from);
            return sha.digest();
        } catch (NoSuchAlgorithmException e) {
            throw new IllegalStateException("every JDK has SHA-256", e);
        }
    }
}

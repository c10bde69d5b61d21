package org.tornadomoe.tornado.device;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import org.jspecify.annotations.Nullable;

/**
 * Another machine, described by a properties file: the {@code name} that its driver reports, {@code memory} and {@code
 * maxGroup} of a device, the number of {@code devices}, TornadoVM's {@code backends} for them, and for NVIDIA's the
 * {@code computeCapability}. {@code tornado-config/README.md} describes the files.
 */
public final class DeviceProfile {
    /** The library's own profiles. */
    public static final List<String> NAMES =
            List.of("a100", "b200", "gfx1100", "gfx1201", "gfx90a", "gfx942", "h100", "h200", "rtx4090");

    private static final Set<String> BACKENDS = Set.of(Device.CUDA, Device.PTX, Device.OPENCL);
    private static final Set<String> KEYS =
            Set.of("name", "memory", "maxGroup", "devices", "backends", "computeCapability");

    private DeviceProfile() {}

    /**
     * The home that TornadoVM's API would have on such a machine.
     *
     * @param profile one of {@link #NAMES}, or the path of a file
     * @throws IllegalArgumentException if there is no such profile, or its file lacks a key or has an invalid one
     * @throws UncheckedIOException if the file can't be read
     */
    public static TornadoHome home(String profile) {
        Properties facts = read(profile);
        Set<String> unknown = new TreeSet<>(facts.stringPropertyNames());
        unknown.removeAll(KEYS);
        if (!unknown.isEmpty()) {
            throw wrong(profile, String.join(", ", unknown), "one of " + new TreeSet<>(KEYS), "them");
        }
        String name = text(facts, profile, "name", null);
        String memory = text(facts, profile, "memory", null);
        int maxGroup = number(facts, profile, "maxGroup", null);
        int count = number(facts, profile, "devices", "1");
        String capability = text(facts, profile, "computeCapability", "0.0");
        if (!capability.matches("\\d{1,2}\\.\\d")) {
            throw wrong(profile, "computeCapability", "one such as 9.0", "'" + capability + "'");
        }
        List<Device> devices = new ArrayList<>();
        for (String given : text(facts, profile, "backends", null).split(",", -1)) {
            String backend = given.trim().toUpperCase(Locale.ROOT);
            if (!BACKENDS.contains(backend)) {
                throw wrong(profile, "backends", "some of cuda, ptx and opencl", "'" + given.trim() + "'");
            }
            for (int d = 0; d < count; d++) {
                devices.add(Device.ofProfile(
                        backend.toLowerCase(Locale.ROOT) + ":" + d,
                        backend,
                        name,
                        bytes(profile, memory),
                        maxGroup,
                        Integer.parseInt(capability.replace(".", ""))));
            }
        }
        String note = "profile " + profile + ", not a device of this machine: " + name + ", " + memory
                + "; rows of the CPU and the reference describe this machine";
        return new TornadoHome(TornadoHome.Kind.PROFILE, List.copyOf(devices), Map.of(), note);
    }

    private static Properties read(String profile) {
        Properties facts = new Properties();
        try {
            if (NAMES.contains(profile)) {
                String resource = "profiles/" + profile + ".properties";
                try (InputStream in = DeviceProfile.class.getResourceAsStream(resource)) {
                    if (in == null) {
                        throw new IllegalStateException(resource + " is missing from the library");
                    }
                    facts.load(new InputStreamReader(in, UTF_8));
                }
            } else if (Files.isRegularFile(Path.of(profile))) {
                facts.load(Files.newBufferedReader(Path.of(profile)));
            } else {
                throw new IllegalArgumentException(
                        "device profile: expected one of " + NAMES + " or a file, got '" + profile + "'");
            }
        } catch (IOException e) {
            throw new UncheckedIOException("device profile " + profile, e);
        }
        return facts;
    }

    private static String text(Properties facts, String profile, String key, @Nullable String otherwise) {
        String value = facts.getProperty(key, otherwise);
        if (value == null || value.isBlank()) {
            throw wrong(profile, key, "a value", "none");
        }
        return value.trim();
    }

    private static int number(Properties facts, String profile, String key, @Nullable String otherwise) {
        String value = text(facts, profile, key, otherwise);
        if (!value.matches("[1-9]\\d{0,6}")) {
            throw wrong(profile, key, "a number from 1 on", "'" + value + "'");
        }
        return Integer.parseInt(value);
    }

    private static long bytes(String profile, String memory) {
        try {
            return Device.memoryLimit(memory);
        } catch (IllegalArgumentException e) {
            throw wrong(profile, "memory", "a size such as 40GB", "'" + memory + "'");
        }
    }

    private static IllegalArgumentException wrong(String profile, String key, String expected, String got) {
        return new IllegalArgumentException(
                "device profile " + profile + ": " + key + ": expected " + expected + ", got " + got);
    }
}

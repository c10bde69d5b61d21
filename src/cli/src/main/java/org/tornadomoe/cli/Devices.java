package org.tornadomoe.cli;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;

/** {@code moe devices}: what is here, and what each kernel class lacks. */
@Command(name = "devices", description = "Lists devices, what they can do, and what each kernel class lacks.")
final class Devices implements Callable<Integer> {
    /** A small layer that every kernel class could serve, if only the device lets it. */
    private static final FusedMoeConfig ANY = FusedMoeConfig.builder()
            .numExperts(8)
            .expertsPerToken(2)
            .hiddenDim(128)
            .intermediateSize(128)
            .maxNumTokens(16)
            .build();

    @Mixin
    Target target;

    @Mixin
    Output output;

    /** A kernel class on a device, with the reason why it can't serve a scheme, null where it can. */
    private record Service(String backend, String device, String name, Map<String, @Nullable String> schemes) {
        static Service of(FusedMoeExperts experts, String device) {
            FusedMoeConfig there = ANY.toBuilder().device(device).build();
            Map<String, @Nullable String> schemes = new LinkedHashMap<>();
            for (Int8Scheme scheme : Int8Scheme.values()) {
                Support support = experts.isSupportedConfig(
                        there, scheme.weightKey(), scheme.activationKey(), experts.activationFormat());
                schemes.put(scheme.toString(), support.supported() ? null : support.toString());
            }
            return new Service(experts.backend().toString(), device, experts.name(), schemes);
        }

        List<String> row() {
            List<String> served = new ArrayList<>();
            List<String> missing = new ArrayList<>();
            schemes.forEach((scheme, reason) -> {
                if (reason == null) {
                    served.add(scheme);
                } else {
                    missing.add(scheme + ": " + reason);
                }
            });
            boolean sameForAll = served.isEmpty() && new HashSet<>(schemes.values()).size() == 1;
            String lacks =
                    sameForAll ? String.valueOf(schemes.values().iterator().next()) : String.join("; ", missing);
            return List.of(name, device, String.join(", ", served), lacks);
        }

        Map<String, @Nullable Object> toJson() {
            Map<String, @Nullable Object> json = new LinkedHashMap<>();
            json.put("name", name);
            json.put("backend", backend);
            json.put("device", device);
            json.put("unsupported", schemes);
            return json;
        }
    }

    @Override
    public Integer call() {
        TornadoHome home = TornadoHome.current();
        String note = target.homeNote();
        String kind = home.kind().name().toLowerCase(Locale.ROOT);
        String absent = System.getProperty("tornadomoe.absent");
        List<Service> services = new ArrayList<>();
        for (FusedMoeExperts experts : Int8MoeOracle.installed().kernelClasses()) {
            for (String device : experts.devices()) {
                services.add(Service.of(experts, device));
            }
        }
        Map<String, @Nullable String> chosen = new LinkedHashMap<>();
        for (Int8Scheme scheme : Int8Scheme.values()) {
            chosen.put(scheme.toString(), chosen(scheme));
        }

        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("home", kind);
        json.put("version", home.version());
        json.put("untriedVersion", home.untriedVersion());
        json.put("note", note);
        json.put("absentBackends", absent);
        json.put("devices", home.devices().stream().map(Devices::toJson).toList());
        json.put("kernelClasses", services.stream().map(Service::toJson).toList());
        json.put("chosen", chosen);
        output.print(json, text(home, kind, note, absent, services) + text(chosen));
        return Moe.DONE;
    }

    /** What a layer would run on with these options, null if on nothing. */
    private @Nullable String chosen(Int8Scheme scheme) {
        try {
            Sharding sharding = target.select(ANY, scheme);
            return sharding.kernelClass() + " on " + sharding.device();
        } catch (UnsupportedOperationException nothing) {
            return null;
        }
    }

    private static String text(Map<String, @Nullable String> chosen) {
        List<List<String>> rows = new ArrayList<>();
        rows.add(List.of("scheme", "runs as"));
        chosen.forEach((scheme, what) -> rows.add(List.of(scheme, what == null ? "nothing here" : what)));
        return System.lineSeparator() + System.lineSeparator() + Output.table(rows);
    }

    private static Map<String, Object> toJson(Device device) {
        Map<String, Object> json = new LinkedHashMap<>();
        json.put("id", device.id());
        json.put("backend", device.id().substring(0, device.id().indexOf(':')));
        json.put("name", device.name());
        json.put("memory", device.memory());
        json.put("maxWorkGroup", device.maxGroup());
        json.put("dp4a", device.lacksDp4a() == null);
        json.put("int8Mma", device.lacksInt8Mma() == null);
        return json;
    }

    private static String text(
            TornadoHome home, String kind, @Nullable String note, @Nullable String absent, List<Service> services) {
        List<List<String>> devices = new ArrayList<>();
        devices.add(List.of("device", "name", "memory", "work-group", "dp4a", "int8 mma"));
        for (Device device : home.devices()) {
            devices.add(List.of(
                    device.id(),
                    device.name(),
                    Output.bytes(device.memory()),
                    Integer.toString(device.maxGroup()),
                    device.lacksDp4a() == null ? "yes" : "no",
                    device.lacksInt8Mma() == null ? "yes" : "no"));
        }
        List<List<String>> classes = new ArrayList<>();
        classes.add(List.of("kernel class", "device", "serves", "lacks"));
        services.forEach(service -> classes.add(service.row()));

        String blank = System.lineSeparator() + System.lineSeparator();
        return "TornadoVM: " + kind + (home.version() == null ? "" : " " + home.version())
                + (note == null ? "" : ": " + note)
                + (home.untriedVersion() == null ? "" : System.lineSeparator() + home.untriedVersion())
                + (absent == null ? "" : System.lineSeparator() + "not here: " + absent)
                + (home.devices().isEmpty() ? "" : blank + Output.table(devices))
                + blank + Output.table(classes);
    }
}

package org.tornadomoe.cli;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.parallel.Sharding;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.TornadoHome;
import picocli.CommandLine.Command;
import picocli.CommandLine.Mixin;

/** {@code moe devices}: lists the devices, and what each kernel class is missing on them. */
@Command(
        name = "devices",
        description = "Lists the devices, their capabilities, and what each kernel class is missing on them.",
        footerHeading = "%nExamples:%n",
        footer = {"  moe devices", "  moe devices --json"})
final class Devices implements Callable<Integer> {
    /** A small layer that every kernel class can serve if the device allows it. */
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
    Reasons reasons;

    @Mixin
    Output output;

    /** A kernel class on a device, with the reason why it can't serve a scheme; null if it can. */
    private record Service(String backend, String device, String name, Map<String, @Nullable String> schemes) {
        static Service of(FusedMoeExperts experts, String device) {
            FusedMoeConfig there = ANY.toBuilder().device(device).build();
            Map<String, @Nullable String> schemes = new LinkedHashMap<>();
            for (Int8Scheme scheme : Int8Scheme.values()) {
                Support support = experts.isSupportedConfig(
                        there, scheme.weightKey(), scheme.activationKey(), ANY.activationFormat());
                schemes.put(scheme.toString(), support.supported() ? null : support.toString());
            }
            return new Service(experts.backend().toString(), device, experts.name(), schemes);
        }

        /** The table's row, with numbered reasons; omits the reason that the class was made for other schemes. */
        List<String> row(Reasons reasons) {
            List<String> served = schemes.keySet().stream()
                    .filter(scheme -> schemes.get(scheme) == null)
                    .toList();
            List<String> lacks = schemes.values().stream()
                    .flatMap(Stream::ofNullable)
                    .filter(reason -> reasons.verbose || !reason.contains("quantization scheme"))
                    .toList();
            String serves = served.isEmpty()
                    ? "none here"
                    : served.size() == schemes.size() ? "every scheme" : String.join(", ", served);
            return List.of(name, device, serves + (lacks.isEmpty() ? "" : " (see " + reasons.numbers(lacks) + ")"));
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
        String note = target.machineNote();
        String kind = home.kind().name().toLowerCase(Locale.ROOT);
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

        Map<String, String> wrong = new LinkedHashMap<>();
        for (Device device : home.devices()) {
            String why = whyWrong(device);
            if (why != null) {
                wrong.put(device.id(), why);
            }
        }

        Map<String, @Nullable Object> json = new LinkedHashMap<>();
        json.put("home", kind);
        json.put("version", home.version());
        json.put("untriedVersion", home.untriedVersion());
        json.put("note", note);
        json.put("absentBackends", home.absentBackends());
        json.put("devices", home.devices().stream().map(Devices::toJson).toList());
        json.put("wrong", wrong);
        json.put("kernelClasses", services.stream().map(Service::toJson).toList());
        json.put("chosen", chosen);
        output.print(json, text(home, kind, note, services, chosen, wrong));
        return Moe.DONE;
    }

    /** The device on which a layer would run with these options; null if none. */
    private @Nullable String chosen(Int8Scheme scheme) {
        try {
            Sharding sharding = target.select(ANY, Int8Quantization.of(scheme));
            return sharding.kernelClass() + " on " + sharding.device();
        } catch (UnsupportedOperationException nothing) {
            return null;
        }
    }

    /**
     * Why layers on a CPU through OpenCL are refused; null if they aren't, and for other devices, which are checked
     * when a layer is loaded. PoCL 5 with LLVM 16 computes wrong numbers on some CPUs.
     */
    private static @Nullable String whyWrong(Device device) {
        if (!device.is(Device.OPENCL) || device.isBesideTheCpu()) {
            return null;
        }
        MoeOptions options =
                MoeOptions.DEFAULT.withBackend("triton").withDevice(device.id()).withMaxTokens(1);
        try (Int8Experts experts = RandomExperts.of(ANY, Int8Quantization.of(Int8Scheme.W8A8_CHANNEL), 0);
                MoeLayer _ = MoeLayer.of(experts, options)) {
            return null;
        } catch (MoeExecutionException | UnsupportedOperationException refused) {
            return String.valueOf(refused.getMessage());
        }
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

    private String text(
            TornadoHome home,
            String kind,
            @Nullable String note,
            List<Service> services,
            Map<String, @Nullable String> chosen,
            Map<String, String> wrong) {
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
        List<List<String>> schemes = new ArrayList<>();
        schemes.add(List.of("scheme", "runs as"));
        chosen.forEach((scheme, what) -> schemes.add(List.of(scheme, what == null ? "none here" : what)));
        List<List<String>> classes = new ArrayList<>();
        classes.add(List.of("kernel class", "device", "serves"));
        services.forEach(service -> classes.add(service.row(reasons)));

        int width = output.width();
        List<String> parts = new ArrayList<>();
        String home1 = "TornadoVM: " + kind + (home.version() == null ? "" : " " + home.version())
                + (note == null ? "" : ": " + note);
        parts.add(String.join(
                System.lineSeparator(),
                Stream.of(home1, home.untriedVersion(), absent(home))
                        .flatMap(Stream::ofNullable)
                        .flatMap(line -> Output.wrap(line, width).stream())
                        .toList()));
        if (!home.devices().isEmpty()) {
            parts.add(Output.table(devices));
        }
        wrong.forEach((device, why) ->
                parts.add(String.join(System.lineSeparator(), Output.wrap(device + " is left out: " + why, width))));
        parts.add(Output.table(schemes, width));
        parts.add(Output.table(classes, width));
        if (!reasons.list().isEmpty()) {
            parts.add(Output.table(reasons.list(), width));
        }
        return String.join(System.lineSeparator().repeat(2), parts);
    }

    private static @Nullable String absent(TornadoHome home) {
        return home.absentBackends() == null ? null : "not here: " + home.absentBackends();
    }
}

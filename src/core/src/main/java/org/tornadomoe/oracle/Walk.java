package org.tornadomoe.oracle;

import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.function.Function;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.config.QuantKey;
import org.tornadomoe.kernel.FusedMoeExperts;
import org.tornadomoe.kernel.Support;

/** The result of asking kernel classes in order: those that refused, and the first that serves the layer, if any. */
record Walk(List<Answer> refused, @Nullable FusedMoeExperts taken) {
    /** A kernel class and whether it serves the layer. */
    record Answer(FusedMoeExperts experts, Support support) {
        /** Asks a class; a class that throws doesn't support the layer. */
        static Answer of(
                FusedMoeExperts experts,
                FusedMoeConfig config,
                @Nullable QuantKey weightKey,
                @Nullable QuantKey activationKey) {
            return new Answer(
                    experts,
                    ask(
                            () -> experts.isSupportedConfig(
                                    config, weightKey, activationKey, config.activationFormat()),
                            failure -> Support.no("its check failed: " + failure, null)));
        }

        boolean isTooLarge() {
            return support.bytesNeeded() > support.bytesAvailable();
        }

        String unsupportedLine() {
            return Walk.unsupportedLine(experts.backend(), support.reason());
        }

        @Override
        public String toString() {
            return experts.name() + ": " + support;
        }
    }

    static Walk over(
            List<FusedMoeExperts> classes,
            FusedMoeConfig config,
            @Nullable QuantKey weightKey,
            @Nullable QuantKey activationKey) {
        List<Answer> refused = new ArrayList<>();
        for (FusedMoeExperts experts : classes) {
            Answer answer = Answer.of(experts, config, weightKey, activationKey);
            if (answer.support.supported()) {
                return new Walk(refused, experts);
            }
            refused.add(answer);
        }
        return new Walk(refused, null);
    }

    /** Goes on with other classes if none was taken. */
    Walk or(Supplier<Walk> others) {
        if (taken != null) {
            return this;
        }
        Walk more = others.get();
        List<Answer> all = new ArrayList<>(refused);
        all.addAll(more.refused);
        return new Walk(all, more.taken);
    }

    Selection selection(FusedMoeConfig config) {
        FusedMoeExperts experts = Objects.requireNonNull(taken);
        return new Selection(
                experts.backend(),
                experts,
                config,
                refused.stream().map(Answer::toString).toList());
    }

    /** vLLM's log line for a backend that doesn't support the layer. */
    static String unsupportedLine(Int8MoeBackend backend, @Nullable String reason) {
        return reason == null
                ? "Int8 MoE backend '" + backend.value() + "' does not support the deployment configuration."
                : "Int8 MoE backend " + backend.value() + " does not support the deployment configuration since "
                        + reason + ".";
    }

    /** A kernel class's answer, or another value if it throws. */
    static <T> T ask(Supplier<T> question, Function<Throwable, T> otherwise) {
        try {
            return question.get();
        } catch (VirtualMachineError failure) {
            throw failure;
        } catch (RuntimeException | Error failure) {
            return otherwise.apply(failure);
        }
    }
}

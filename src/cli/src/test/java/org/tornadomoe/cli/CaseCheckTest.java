package org.tornadomoe.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.tornadomoe.checkpoint.CaseFile;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8MoeBackend;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.reference.ReferenceExperts;

/** The check of case files finds a kernel class that is wrong in one stage, and says in which. */
class CaseCheckTest {
    @ParameterizedTest
    @CsvSource({
        "topkIds, routing",
        "topkWeights, routing",
        "a1, quantise 1",
        "a1Scales, quantise 1",
        "gemm1, gemm 1",
        "act, activation",
        "a2, quantise 2",
        "a2Scales, quantise 2",
        "gemm2, gemm 2",
        "output, combine",
    })
    void defectIsFoundInItsStage(String what, String stage) {
        assertThat(failedStages(what)).contains(stage);
    }

    @Test
    void referenceHasNoDefect() {
        assertThat(failedStages("nothing")).isEmpty();
    }

    @Test
    void unitIsTheExpectedValuesLastBf16Place() {
        // 1 has 7 bits behind it in bf16
        assertThat(CaseCheck.bf16Units(new float[] {1 + 1 / 128f}, new float[] {1}))
                .isEqualTo(1);
        assertThat(CaseCheck.bf16Units(new float[] {-3f, 4.5f}, new float[] {-3f, 4f}))
                .isEqualTo(16);
        assertThat(CaseCheck.bf16Units(new float[] {Float.NaN}, new float[] {1}))
                .isNaN();
        assertThat(CaseCheck.bf16Units(new float[] {0}, new float[] {0})).isZero();
    }

    @Test
    void notANumberIsNeverOk() {
        assertThat(new Check("s", "m", Double.NaN, Double.POSITIVE_INFINITY).ok())
                .isFalse();
        assertThat(new Check("s", "m", Double.POSITIVE_INFINITY, Double.POSITIVE_INFINITY).ok())
                .isFalse();
        assertThat(new Check("s", "m", 1, 1).ok()).isTrue();
    }

    /** Stages found wrong where a kernel class has a defect in what it makes of one value. */
    private static List<String> failedStages(String what) {
        try (CaseFile file = CaseFile.read(Ran.GOLDEN.resolve("vllm/w8a8_channel_m1.safetensors"))) {
            return CaseCheck.check(
                            file,
                            new Selection(Int8MoeBackend.REFERENCE, new Defective(what), file.config(), List.of()))
                    .checks()
                    .stream()
                    .filter(check -> !check.ok())
                    .map(Check::stage)
                    .distinct()
                    .toList();
        }
    }

    /** The reference with a defect. */
    private static final class Defective extends ReferenceExperts {
        private final String what;

        Defective(String what) {
            this.what = what;
        }

        @Override
        public StageValues stages(
                FusedMoeConfig config, Int8Experts experts, float[] hidden, int tokens, StageValues given) {
            StageValues v = super.stages(config, experts, hidden, tokens, given);
            return new StageValues(
                    v.logits(),
                    what.equals("topkIds") ? new int[] {v.topkIds()[1], v.topkIds()[0]} : v.topkIds(),
                    changed("topkWeights", v.topkWeights()),
                    v.blockSize(),
                    v.sortedIds(),
                    what.equals("expertIds") ? new int[v.expertIds().length] : v.expertIds(),
                    changed("a1", v.a1()),
                    changed("a1Scales", v.a1Scales()),
                    changed("gemm1", v.gemm1()),
                    changed("act", v.act()),
                    changed("a2", v.a2()),
                    changed("a2Scales", v.a2Scales()),
                    changed("gemm2", v.gemm2()),
                    changed("output", v.output()));
        }

        /** One value is off by two bf16 units. */
        private float[] changed(String name, float[] values) {
            float[] changed = values.clone();
            if (what.equals(name)) {
                changed[values.length / 2] *= 1 + 1 / 64f;
            }
            return changed;
        }

        /** One value is off by one. */
        private byte[] changed(String name, byte[] values) {
            byte[] changed = values.clone();
            if (what.equals(name)) {
                int at = values.length / 2;
                changed[at] = (byte) (values[at] > 0 ? values[at] - 1 : values[at] + 1);
            }
            return changed;
        }
    }
}

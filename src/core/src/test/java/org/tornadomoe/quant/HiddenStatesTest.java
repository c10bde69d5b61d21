package org.tornadomoe.quant;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.tornadomoe.config.ScalarType;

/**
 * Against a definition of their own: sign, exponent and fraction as the formats say, in double, and the nearest by
 * distance.
 */
class HiddenStatesTest {
    private static double value(ScalarType type, int bits) {
        int fractionBits = type == ScalarType.F16 ? 10 : 7;
        int exponentBits = 15 - fractionBits;
        int exponent = (bits >> fractionBits) & ((1 << exponentBits) - 1);
        double fraction = (bits & ((1 << fractionBits) - 1)) / (double) (1 << fractionBits);
        int bias = (1 << (exponentBits - 1)) - 1;
        double magnitude = exponent == (1 << exponentBits) - 1
                ? fraction == 0 ? Double.POSITIVE_INFINITY : Double.NaN
                : exponent == 0 ? fraction * Math.pow(2, 1 - bias) : (1 + fraction) * Math.pow(2, exponent - bias);
        return (bits & 0x8000) == 0 ? magnitude : -magnitude;
    }

    @ParameterizedTest
    @EnumSource(names = {"F16", "BF16"})
    void allBitsAreWidenedAndNarrowedBack(ScalarType type) {
        for (int bits = 0; bits < 1 << 16; bits++) {
            double expected = value(type, bits);
            float widened = HiddenStates.widen(type, (short) bits);
            assertThat(Double.compare(widened, expected)).as("%x", bits).isZero();
            short back = HiddenStates.narrow(type, widened);
            if (Double.isNaN(expected)) {
                assertThat(HiddenStates.widen(type, back)).isNaN();
            } else {
                assertThat(back).isEqualTo((short) bits);
            }
        }
    }

    @ParameterizedTest
    @EnumSource(names = {"F16", "BF16"})
    void valuesAreRoundedToTheNearestTiesToEven(ScalarType type) {
        int infinity = type == ScalarType.F16 ? 0x7c00 : 0x7f80;
        double beyond = 2 * value(type, infinity - 1) - value(type, infinity - 2);
        SplittableRandom random = new SplittableRandom(1);
        for (int i = 0; i < 200_000; i++) {
            int bits = random.nextInt(infinity);
            double below = value(type, bits);
            double above = bits + 1 == infinity ? beyond : value(type, bits + 1);
            float middle = (float) ((below + above) / 2);
            float x = switch (i % 4) {
                case 0 -> middle;
                case 1 -> Math.nextUp(middle);
                case 2 -> Math.nextDown(middle);
                default -> (float) (below + random.nextDouble() * (above - below));
            };
            double down = x - below;
            double up = above - x;
            int expected = down < up || (down == up && bits % 2 == 0) ? bits : bits + 1;
            assertThat(HiddenStates.narrow(type, x)).as("%s", x).isEqualTo((short) expected);
            assertThat(HiddenStates.narrow(type, -x)).isEqualTo((short) (expected | 0x8000));
        }
        assertThat(HiddenStates.narrow(type, Float.POSITIVE_INFINITY)).isEqualTo((short) infinity);
        assertThat(HiddenStates.narrow(type, Float.NEGATIVE_INFINITY)).isEqualTo((short) (infinity | 0x8000));
        for (int payload : new int[] {0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffffffff}) {
            assertThat(HiddenStates.widen(type, HiddenStates.narrow(type, Float.intBitsToFloat(payload))))
                    .isNaN();
        }
    }

    @ParameterizedTest
    @EnumSource(names = {"F32", "F16", "BF16"})
    void asManyAsAskedForAreReadAndWrittenAndNothingBehindThem(ScalarType type) {
        float[] values = {1.5f, -2f, 0f, 100f, -0.25f};
        // Behind an odd byte: what a caller hands over need not be aligned.
        MemorySegment memory =
                MemorySegment.ofArray(new byte[1 + 5 * type.bytes()]).asSlice(1);
        HiddenStates.write(type, values, 4, memory);
        float[] back = {9, 9, 9, 9, 9};
        HiddenStates.read(type, memory, back, 3);
        assertThat(back).containsExactly(1.5f, -2f, 0f, 9, 9);
        HiddenStates.read(type, memory, back, 5);
        assertThat(back).containsExactly(1.5f, -2f, 0f, 100f, 0f);
        if (type != ScalarType.F32) {
            for (int i = 0; i < 4; i++) {
                short bits = memory.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i);
                assertThat(value(type, bits & 0xffff)).isEqualTo(values[i]);
            }
        }
    }

    @Test
    void int8IsNoTypeOfHiddenStates() {
        MemorySegment memory = MemorySegment.ofArray(new byte[4]);
        String message = "hidden states: expected f32, f16 or bf16, got i8";
        assertThatIllegalArgumentException()
                .isThrownBy(() -> HiddenStates.read(ScalarType.I8, memory, new float[1], 1))
                .withMessage(message);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> HiddenStates.write(ScalarType.I8, new float[1], 1, memory))
                .withMessage(message);
    }

    @ParameterizedTest
    @CsvSource({"F32, 16, 4, -1, 4", "F32, 16, 4, 5, 4", "F32, 15, 4, 4, 3", "F32, 99, 2, 3, 2", "BF16, 8, 9, 5, 4"})
    void moreThanThereIsRoomForIsRefusedBeforeAnythingIsWritten(
            ScalarType type, int bytes, int values, int count, int most) {
        byte[] memory = new byte[bytes];
        float[] ones = new float[values];
        Arrays.fill(ones, 1);
        String message = "count: expected 0 to " + most + ", got " + count;
        assertThatIllegalArgumentException()
                .isThrownBy(() -> HiddenStates.write(type, ones, count, MemorySegment.ofArray(memory)))
                .withMessage(message);
        assertThat(memory).containsOnly(0);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> HiddenStates.read(type, MemorySegment.ofArray(memory), ones, count))
                .withMessage(message);
        assertThat(ones).containsOnly(1);
        HiddenStates.read(type, MemorySegment.ofArray(memory), ones, 0);
        assertThat(ones).containsOnly(1);
        HiddenStates.write(type, ones, most, MemorySegment.ofArray(memory));
        HiddenStates.read(type, MemorySegment.ofArray(memory), ones, most);
        assertThat(ones).containsOnly(1);
    }

    @ParameterizedTest
    @EnumSource(names = {"F32", "F16", "BF16"})
    void theFirstThatIsNoFiniteNumberIsNamed(ScalarType type) {
        float[] values = {1, 2, 3, 4, 5, 6};
        MemorySegment memory = MemorySegment.ofArray(new byte[6 * type.bytes()]);
        HiddenStates.write(type, values, 6, memory);
        HiddenStates.requireFinite(type, memory, 2, 3);
        values[5] = Float.NEGATIVE_INFINITY;
        HiddenStates.write(type, values, 6, memory);
        HiddenStates.requireFinite(type, memory, 1, 3); // the second token isn't looked at
        assertThatIllegalArgumentException()
                .isThrownBy(() -> HiddenStates.requireFinite(type, memory, 2, 3))
                .withMessage("hidden: expected finite values, got -Infinity at [1, 2]");
        values[3] = Float.NaN;
        HiddenStates.write(type, values, 6, memory);
        assertThatIllegalArgumentException()
                .isThrownBy(() -> HiddenStates.requireFinite(type, memory, 2, 3))
                .withMessage("hidden: expected finite values, got NaN at [1, 0]");
    }
}

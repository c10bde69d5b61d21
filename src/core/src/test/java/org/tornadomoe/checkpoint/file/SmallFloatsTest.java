package org.tornadomoe.checkpoint.file;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class SmallFloatsTest {
    /** By its bits: four of exponent, three of mantissa. */
    @ParameterizedTest
    @CsvSource({"0, 0", "1, 0x1p-9", "7, 0x7p-9", "8, 0x1p-6", "15, 0xfp-9", "56, 1", "61, 1.625", "126, 448"})
    void theMagnitudesOfE4M3(int bits, float value) {
        assertThat(SmallFloats.e4m3(bits)).isEqualTo(value);
        assertThat(SmallFloats.E4M3[bits]).isEqualTo(value);
        assertThat(SmallFloats.E4M3[128 + bits]).isEqualTo(-value);
    }

    /** A byte is two of E2M1's numbers, the lower four bits the first. */
    @Test
    void aByteOfFourBitNumbersIsTwo() {
        char[] pairs = SmallFloats.pairs(SmallFloats.HALF_STEPS);
        for (int high = 0; high < 16; high++) {
            for (int low = 0; low < 16; low++) {
                char pair = pairs[16 * high + low];
                assertThat((byte) pair).isEqualTo(SmallFloats.HALF_STEPS[low]);
                assertThat((byte) (pair >> 8)).isEqualTo(SmallFloats.HALF_STEPS[high]);
            }
        }
    }
}

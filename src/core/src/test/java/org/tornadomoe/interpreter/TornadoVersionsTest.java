package org.tornadomoe.interpreter;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;
import org.tornadomoe.tornado.device.TornadoHome;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;

/**
 * The library's classes refer to nothing of TornadoVM's API that a version from 5.2 to 8.2 lacks, as far as it is
 * known: a name that one of them hasn't is an error when that code is first run there, not when it is built.
 */
class TornadoVersionsTest {
    private static Set<String> used() throws IOException {
        Set<String> used = ApiSignatures.references(ApiSignatures.classesBeside(TornadoHome.class, "org"));
        assertThat(used).hasSizeGreaterThan(100);
        return used;
    }

    @Test
    void everythingUsedIsIn5() throws IOException {
        assertThat(ApiSignatures.missingFromOlder(used())).isEmpty();
    }

    @Test
    void everythingUsedIsKnownOf6To8() throws IOException {
        assertThat(ApiSignatures.newer().missing(used())).isEmpty();
    }

    /** Warps' exchange of values, which OpenCL gets wrong, among it. */
    @Test
    void nothingIsListedThatNobodyUsesAndEachLineHasItsSource() throws IOException {
        ApiSignatures.Newer newer = ApiSignatures.newer();
        Set<String> listed = new TreeSet<>(newer.lines().keySet());
        listed.removeAll(newer.added());
        assertThat(used()).containsAll(listed);
        assertThat(newer.lines()).allSatisfy((_, sources) -> assertThat(sources).isNotEmpty());
        assertThat(newer.sourceThatIsNone()).isNull();
        assertThat(ApiSignatures.missingFromOlder(newer.added())).isEqualTo(newer.added());
    }

    /** Names of an enum's constants, as they get into a class: by name, and by a switch. */
    static final class Planted {
        static boolean isPtx(TornadoVMBackendType backend) {
            return backend == TornadoVMBackendType.PTX;
        }

        static int order(TornadoVMBackendType backend) {
            return switch (backend) {
                case SPIRV -> 1;
                default -> 0;
            };
        }

        static byte[] atAnOffset(KernelContext context, int[] tile) {
            return context.mmaLoadAInt8(tile, 32, 512);
        }
    }

    @Test
    void aNameThatOneOfThemLacksIsFound() throws Exception {
        Class<?> ofTheSwitch = Class.forName(TornadoVersionsTest.class.getName() + "$1");
        Set<String> planted =
                ApiSignatures.references(List.of(ApiSignatures.parse(Planted.class), ApiSignatures.parse(ofTheSwitch)));
        String backend = "field uk/ac/manchester/tornado/api/enums/TornadoVMBackendType.%s"
                + " Luk/ac/manchester/tornado/api/enums/TornadoVMBackendType;";
        assertThat(ApiSignatures.newer().missing(planted))
                .contains(backend.formatted("PTX"), backend.formatted("SPIRV"))
                .noneMatch(line -> line.contains("mmaLoadAInt8"));
        assertThat(ApiSignatures.missingFromOlder(planted))
                .containsExactly("method uk/ac/manchester/tornado/api/KernelContext.mmaLoadAInt8 ([III)[B");
    }
}
